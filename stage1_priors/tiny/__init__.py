"""The embedded frozen prior: a Qwen2.5-VL of two million parameters that answers with boxes on drawn scenes.

`python -m stage1_priors.tiny.train` retrains it; `weights/` holds the committed result, a Hugging Face folder that
vLLM serves unchanged. It exists to exercise the real pipeline without downloads, not to compete with real models.
"""

from pathlib import Path

WEIGHTS_DIR = Path(__file__).parent / "weights"
"""The committed model folder."""
