"""The embedded mask proposer: a Sam2Model of under a million parameters that turns boxes on drawn scenes into masks.

`python -m stage1_priors.tiny_sam.train` retrains it; `weights/` holds the committed result, a Hugging Face folder that
`Sam2Model` and `Sam2Processor` load unchanged. Like the tiny Qwen2.5-VL it is there so that the whole pipeline (answer,
box, mask) runs without a download, not to compete with real models.
"""

from pathlib import Path

WEIGHTS_DIR = Path(__file__).parent / "weights"
"""The committed model folder."""
