"""mmdit: Diffusion Transformers on images and video, one network for both."""

__version__ = "0.1.0"
