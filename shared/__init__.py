"""What both stages share: data readers, masks, metrics, configuration and the prior store. Imports neither stage."""
