"""Pictures, names and spoken names of the icons, aligned with real encoders and measured in all six directions."""
