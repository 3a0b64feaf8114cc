"""The interfaces of llama-cpp-python and transformers, implemented on gumba: an application changes one import."""
