"""Reinforced pseudo-label enhancement (eq. 7-14): a small policy sets the two thresholds that select pixels.

`policy` states, actions, pseudo-labels; `reward` what an action gained; `ddpg` the learner; `methods.l2l` puts one step
together. Nothing here is used at inference.
"""
