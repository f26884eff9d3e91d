"""What every model card says: its head, and a Jinja template for its body.

The template takes `title` and `body` (Markdown). Without them, as for a network saved outside a run, the card says that
nothing is known of its training. `model_card` fills it from a run.
"""

from typing import Any

CARD_TEMPLATE = """---
{{ card_data }}
---

# Referring segmentation{{ ": " + title if title else "" }}

An image and a sentence go in, a mask of the object the sentence names comes out.

```python
from PIL import Image
from stage2_train.predict import Predictor

predict = Predictor.from_pretrained("path/to/this/folder")
(found,) = predict([Image.open("photo.jpg").convert("RGB")], ["the red mug on the left"])
found.mask_hw          # bool [height, width] of the photo
```

or `l2l predict path/to/this/folder photo.jpg "the red mug on the left"`.
`ReferringSegmentor.from_pretrained` of `stage2_train.segmentor` gives the bare network.

{{ body or "Saved outside a run: nothing is known of its training." }}
"""


def card_data(*tags: str) -> dict[str, Any]:
    """Metadata of every card, in the words of the Hugging Face Hub, with further tags."""
    return {
        "license": "apache-2.0",
        "library_name": "l2l",
        "pipeline_tag": "image-segmentation",
        "tags": ["referring-image-segmentation", "semi-supervised", *tags],
    }
