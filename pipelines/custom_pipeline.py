"""A pipeline of mmdit, for DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True).

Each saved pipeline folder has a copy of this file as pipeline.py, where diffusers looks for it.
"""

from importlib import import_module

try:
    # Not by an import statement: diffusers would tell to install a package of the module's name, which is another one.
    ClipPipeline = import_module("mmdit.pipelines.clip_pipeline").ClipPipeline
except ImportError as error:
    raise ImportError(f"this pipeline needs mmdit ({error}): pip install mmdit-video") from error

__all__ = ["ClipPipeline"]
