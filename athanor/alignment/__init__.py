"""From a text predictor to an assistant: fine-tuning data, preference losses and policy optimisation."""
