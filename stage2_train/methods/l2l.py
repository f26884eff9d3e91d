"""L2L: semantic prior modulation, structural enhancement and reinforced thresholds (eq. 1-14) in one step.

1. Pw from a pass without gradient and without a field (this breaks the circle Pw <-> P̃†): of every unlabelled sample,
   and of those labelled ones that are about to see a field.
2. P̃† = fuse(P†, Pw); a row without a proposal has P̃† = Pw and never a field.
3. One pass with gradient over labelled weak and unlabelled strong views; each sample sees its own P̃† as field, which
   carries no gradient, with probability `field_probability`.
4. Thresholds per sample from the policy; pseudo-labels from P̃†.
5. After the optimiser step: one policy update on the transitions of the whole global mini-batch.

Exploration noise comes with the sample (keyed), so that the number of processes and of micro-batches changes nothing.
"Unprimed" quantities are the same sample's under the thresholds in force before the step (the mean action of the step
before).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stage2_train.batch import Batch, LabelledPart, UnlabelledPart
from stage2_train.config import TrainConfig
from stage2_train.constants import constant
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, join_texts, joint_logits, weak_text
from stage2_train.pseudo_labels import Pseudo, pseudo_of
from stage2_train.rple.ddpg import Agent
from stage2_train.rple.policy import (
    ACTION_DIM,
    STATE_DIM,
    band_px,
    project_action,
    pseudo_label,
    relabelled,
    state,
)
from stage2_train.rple.reward import quality, reward
from stage2_train.spm import fuse


class L2l(Method):
    """The method; `L2lConfig` switches its parts off for ablations."""

    def __init__(self, config: TrainConfig) -> None:
        """Build the policy where it is used."""
        super().__init__(config)
        own = config.l2l
        self.band_px = band_px(config.size_hw[0]) if own.band_px < 0 else own.band_px
        self.agent = Agent(config.rple.ddpg, config.rple.policy, config.seed) if own.use_rple else None
        self._transitions: list[Tensor] = []

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        labelled, part = batch.labelled, batch.unlabelled
        assert part is not None
        rows = self._field_rows(labelled, part)
        labelled_weak_F1HW, weak_B1HW = self._weak(networks, labelled, part, rows)
        target_B1HW, lam = self._target(part, weak_B1HW)
        field_B1HW = self._field(labelled, labelled_weak_F1HW, part, target_B1HW, rows)
        rows_F = None if rows is None else torch.cat((rows[0], rows[1] + len(labelled.samples)))
        ids_BT, token_mask_BT, survivors = networks.strong_text(part, self.config.text.similarity)
        labelled_logit, strong_logit = joint_logits(
            networks, labelled, part, (ids_BT, token_mask_BT), field_B1HW, rows_F
        )
        # After the pass, which needs no labels: the policy acts on the CPU, so it waits for the device.
        # A reward is a small difference of two means: bfloat16 would round it away.
        with torch.autocast(target_B1HW.device.type, enabled=False):
            label_BHW, extra, transition_B = self._label(target_B1HW, weak_B1HW, part.noise_B2)
        if transition_B is not None:
            self._transitions.append(transition_B)
        if part.has_prior_B is not None:
            extra["prior_rows"] = part.has_prior_B.float().mean()
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, labelled),
            self.pseudo_loss(strong_logit, label_BHW),
            pseudo_of(part, weak_B1HW, label_BHW, target_B1HW, part.prior_B1HW),
            text_survivors=survivors,
            lam=lam,
            **extra,
        )

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`."""
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        target_B1HW, _ = self._target(part, weak_B1HW)
        label_BHW, _, _ = self._label(target_B1HW, weak_B1HW, part.noise_B2)
        return pseudo_of(part, weak_B1HW, label_BHW, target_B1HW, part.prior_B1HW)

    def labelled_only(self, networks: Networks, part: LabelledPart) -> StepOutput:
        """See `Method.labelled_only`: with the fields they would see beside unlabelled samples.

        Every process makes the same passes, whichever samples see a field: layers may wait for each other's batches.
        """
        rows = self._field_rows(part)
        if rows is None:
            return super().labelled_only(networks, part)
        inputs = part.image_BHW3, part.ids_BT, part.token_mask_BT
        weak_F1HW = networks.weak_prob(*inputs)[rows[0]] if self.config.l2l.use_spm else None
        field_B1HW = self._labelled_field(part, weak_F1HW, rows[0])
        logit_B2HW = networks.logit(*inputs, field_B1HW, rows[0])
        return self.labelled_output(*self.labelled_loss(logit_B2HW, part))

    def _field_rows(self, *parts: LabelledPart | UnlabelledPart) -> list[Tensor] | None:
        """The samples of each part that see a prior field, int64; None where the network takes none.

        To be asked for before anything else is: the answer waits for the device.
        """
        if not self.config.uses_field:
            return None
        rows = []
        for part in parts:
            assert part.has_prior_B is not None
            on_B = (part.field_uniform_B < self.config.l2l.field_probability) & part.has_prior_B
            rows.append(on_B.nonzero()[:, 0])
        return rows

    def _weak(
        self, networks: Networks, labelled: LabelledPart, part: UnlabelledPart, rows: list[Tensor] | None
    ) -> tuple[Tensor | None, Tensor]:
        """Pw of the F labelled samples whose field is made of it and of the unlabelled ones, in one pass."""
        if rows is None or not self.config.l2l.use_spm:
            return None, networks.weak_prob(part.weak_BHW3, *weak_text(part))
        rows_F = rows[0]
        text = join_texts((labelled.ids_BT[rows_F], labelled.token_mask_BT[rows_F]), weak_text(part))
        both_B1HW = networks.weak_prob(torch.cat((labelled.image_BHW3[rows_F], part.weak_BHW3)), *text)
        num = len(both_B1HW) - len(part.samples)
        return both_B1HW[:num], both_B1HW[num:]

    def _target(self, part: UnlabelledPart, weak_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """P̃† and the mean weight of the prior in it; Pw and 0 without SPM or without a proposal."""
        if not self.config.l2l.use_spm:
            return weak_B1HW, weak_B1HW.new_zeros(())
        assert part.prior_B1HW is not None and part.has_prior_B is not None
        fused_B1HW, lam_B1HW = fuse(part.prior_B1HW, weak_B1HW, self.config.spm, part.trust_B)
        has_B111 = part.has_prior_B[:, None, None, None]
        return torch.where(has_B111, fused_B1HW, weak_B1HW), (lam_B1HW * has_B111).mean()

    def _field(
        self,
        labelled: LabelledPart,
        labelled_weak_F1HW: Tensor | None,
        part: UnlabelledPart,
        target_B1HW: Tensor,
        rows: list[Tensor] | None,
    ) -> Tensor | None:
        """The field of labelled then unlabelled samples: P̃†, or P† without SPM. Rows that see none are not read."""
        if rows is None:
            return None
        assert part.prior_B1HW is not None
        own_B1HW = self._labelled_field(labelled, labelled_weak_F1HW, rows[0])
        other_B1HW = part.prior_B1HW if labelled_weak_F1HW is None else target_B1HW
        return torch.cat((own_B1HW, other_B1HW))

    def _labelled_field(self, part: LabelledPart, weak_F1HW: Tensor | None, rows_F: Tensor) -> Tensor:
        """That of the labelled samples; `weak_F1HW` is Pw of those that `rows_F` names, None without SPM."""
        assert part.prior_B1HW is not None and part.trust_B is not None
        if weak_F1HW is None:
            return part.prior_B1HW
        field_B1HW = part.prior_B1HW.clone()
        field_B1HW[rows_F] = fuse(field_B1HW[rows_F], weak_F1HW, self.config.spm, part.trust_B[rows_F])[0]
        return field_B1HW

    def _label(
        self, target_B1HW: Tensor, weak_B1HW: Tensor, noise_B2: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Pseudo-labels and metrics; with a policy also its transitions, [B, s a R s']."""
        if self.agent is None:
            own = self.config.l2l
            fixed_BA = constant((own.tau_fg, own.tau_bg), target_B1HW).expand(len(target_B1HW), -1)
            return pseudo_label(target_B1HW, fixed_BA[:, 0], fixed_BA[:, 1], self.band_px), {}, None
        before_BA = self.agent.thresholds_A.to(target_B1HW.device, non_blocking=True).expand(
            len(target_B1HW), -1
        )
        old_BHW = pseudo_label(target_B1HW, before_BA[:, 0], before_BA[:, 1], self.band_px)
        state_BS = state(target_B1HW, weak_B1HW, old_BHW)
        greedy_BA = self.agent.act(state_BS)
        noisy_BA = greedy_BA + self.config.rple.ddpg.noise_std * noise_B2
        action_BA = project_action(noisy_BA, self.config.rple.policy)
        label_BHW = pseudo_label(target_B1HW, action_BA[:, 0], action_BA[:, 1], self.band_px)
        weights = self.config.rple.reward
        both_2BHW = torch.stack((old_BHW, label_BHW))
        old_B3, new_B3 = quality(weak_B1HW, target_B1HW, both_2BHW, weights.beta, weights.balanced)
        reward_B = reward(old_B3, new_B3, before_BA, action_BA, weights)
        next_BS = relabelled(state_BS, label_BHW)
        transition_B = torch.cat((state_BS, action_BA, reward_B[:, None], next_BS), dim=1).detach()
        names = ("reward_margin", "reward_consistency", "reward_coverage")
        extra = {
            "tau_fg": action_BA[:, 0].mean(),
            "tau_bg": action_BA[:, 1].mean(),
            "reward": reward_B.mean(),
            **dict(zip(names, new_B3.mean(0), strict=True)),
        }
        return label_BHW, extra, transition_B

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """One policy update on the global mini-batch's transitions; none where nothing was labelled."""
        if self.agent is None or not self._transitions:
            return {}
        rows = torch.cat([gather(block) for block in self._transitions])
        self._transitions.clear()
        self.agent.observe(*_columns(rows))
        return {f"policy_{name}": value for name, value in self.agent.update().items()}

    def state_dict(self) -> dict[str, Any]:
        """The policy with its replay buffer and generators."""
        return {} if self.agent is None else self.agent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        if self.agent is not None:
            self.agent.load_state_dict(state)


def _columns(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (s, a, R, s') taken apart."""
    state_BS, action_BA, reward_B1, next_BS = rows.split((STATE_DIM, ACTION_DIM, 1, STATE_DIM), dim=1)
    return state_BS, action_BA, reward_B1[:, 0], next_BS
