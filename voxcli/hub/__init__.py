"""Files of models from the Hugging Face hub: the cache, downloads that resume, and their errors."""
