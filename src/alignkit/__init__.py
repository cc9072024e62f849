"""Take a pretrained language model through alignment: SFT, reward modeling, PPO and DPO."""
