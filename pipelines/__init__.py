"""Generation pipelines in the form of diffusers."""

from mmdit.pipelines.clip_output import ClipPipelineOutput
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.loading import load_pipeline

__all__ = ["ClipPipeline", "ClipPipelineOutput", "load_pipeline"]
