"""FixMatch: confident pixels of the weak view teach the strong view ("Baseline w/o MLLM").

Left out of the original: temperature sharpening (hard labels have none).
"""

from stage2_train.batch import UnlabelledPart
from stage2_train.methods.base import Method
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, confident_label, pseudo_of


class FixMatch(Method):
    """Pseudo-label = Pw thresholded at `fixmatch.threshold`."""

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`."""
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        return pseudo_of(part, weak_B1HW, confident_label(weak_B1HW, self.config.fixmatch.threshold))
