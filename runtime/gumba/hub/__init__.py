"""Downloads from the Hugging Face hub and ModelScope: parsing references, listing and fetching files of a repository."""
