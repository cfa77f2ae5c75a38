"""Generation pipelines in the form of diffusers."""

from mmdit.pipelines.clip_output import ClipPipelineOutput
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.loading import load_pipeline
from mmdit.pipelines.published import from_dit, from_latte

__all__ = ["ClipPipeline", "ClipPipelineOutput", "from_dit", "from_latte", "load_pipeline"]
