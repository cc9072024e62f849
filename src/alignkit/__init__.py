"""Take a pretrained language model through alignment: SFT, reward modelling, PPO and DPO."""
