"""Generation pipelines in the form of diffusers."""
