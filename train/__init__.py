"""The trainer: torch, numpy, safetensors and the standard library, nothing more."""
