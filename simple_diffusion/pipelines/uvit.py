"""The backbone as a diffusers model."""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from simple_diffusion.models.uvit import UViT

# diffusers asks the module that defines a part for the name ModelMixin, so it is imported as such.


class PixelUViT(UViT, ModelMixin, ConfigMixin):
    """`models.UViT` that diffusers saves and loads: same arguments, same state-dict keys.

    The arguments are kept as `config`.
    """

    __init__ = register_to_config(UViT.__init__)

    # ModelMixin looks names up in the config first, which would answer `positions` with the name
    # of a kind and not with the submodule.
    __getattr__ = nn.Module.__getattr__
