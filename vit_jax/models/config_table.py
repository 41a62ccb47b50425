"""Which families' fields are keys of a run's config. Nothing here imports JAX."""

from vit_jax.models.configs import (
    AxialResNetConfig,
    AxialViTConfig,
    ImageConfig,
    MixerConfig,
    NonLocalConfig,
    ResNetConfig,
    ResNetV1Config,
    SasaConfig,
    ViTConfig,
)
from vit_jax.models.detector_configs import DetrResNetConfig, DetrViTConfig, YolosConfig
from vit_jax.models.mae_config import MaeConfig

# The families whose fields are keys of every config.
CONFIGS = (ViTConfig, MixerConfig, ResNetConfig)
# Those whose further fields are keys where `model.name` names them: a pattern of their names.
FURTHER: dict[str, type[ImageConfig]] = {
    r"resnetv1|resnet\d+((w\d+)?_gn|_frozen_bn)": ResNetV1Config,
    r"nonlocal(_.*)?": NonLocalConfig,
    r"sasa(_.*)?": SasaConfig,
    r"axial_resnet.*": AxialResNetConfig,
    r"axial_vit.*": AxialViTConfig,
    r"detr_resnet.*": DetrResNetConfig,
    r"detr_(vit|deit).*": DetrViTConfig,
    r"yolos(_(tiny|small|base|(vit|deit).*))?": YolosConfig,
    r"mae(_vit_.*)?": MaeConfig,
}
