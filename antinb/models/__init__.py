"""Models as generators: noise goes in and images come out, behind one contract for every kind of model."""

__all__ = ["SCHEDULERS"]

SCHEDULERS = {"diffusion": ("ddim", "ddpm", "dpmsolver++"), "rectified": ("euler", "heun"), "consistency": ("lcm",)}
