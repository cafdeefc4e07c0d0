"""migr: modality-importance-guided reasoning for video-audio LLMs."""
