"""Look-alikes of other libraries' interfaces: an application changes one import."""
