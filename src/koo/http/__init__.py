"""One HTTP client over aiohttp: what a request may do, what its failure means, what a body holds."""
