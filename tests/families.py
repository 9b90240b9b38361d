"""Tiny pipelines of many diffusers families with random weights: 8 x 8 latents, one layer, a text of a few letters."""

import json
from dataclasses import dataclass, field

import diffusers
import torch
from helpers import tiny_unet
from PIL import Image

DDIM = diffusers.DDIMScheduler(1000, clip_sample=False, steps_offset=1)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
WORDS = ["<|startoftext|>", "<|endoftext|>", "a", "b", "c", "a</w>", "b</w>", "c</w>"]
PROMPTS = ("a b", "c")


@dataclass
class Family:
    """How a pipeline is built and called: class, components, options, prompts, noise, whether it draws step noise."""

    cls: str
    build: object
    shape: tuple
    options: dict = field(default_factory=dict)
    prompts: tuple = ()
    classes: int = 0
    stochastic: bool = False
    evaluations: int = 2
    clipped: bool = False

    def save(self, folder):
        torch.manual_seed(0)
        parts = self.build(folder.parent)
        pipeline = getattr(diffusers, self.cls)(**parts)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipeline.save_pretrained(folder)
        return folder


def autoencoder(channels=4, **options):
    settings = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": channels, "scaling_factor": 0.5}
    return diffusers.AutoencoderKL(**settings, mid_block_add_attention=False, sample_size=8, **options)


def clip(folder, projected=False, width=8):
    import transformers

    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=6)
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": len(WORDS)}
    settings = transformers.CLIPTextConfig(**sizes, **ends, max_position_embeddings=6, projection_dim=8)
    return tokenizer, kind(settings)


def unet(width=8, channels=4, **options):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=4,
        **options,
    )


def pixels(scheduler, channels=1):
    return lambda _: {"unet": tiny_unet(channels), "scheduler": scheduler}


def stable_diffusion(channels=4):
    def build(folder):
        tokenizer, encoder = clip(folder)
        parts = {"vae": autoencoder(), "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet(channels=channels)}
        parts |= {"scheduler": DDIM}
        return parts | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    return build


def sdxl(folder):
    tokenizer, first = clip(folder)
    tokenizer_2, second = clip(folder, projected=True)
    addition = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    network = unet(16, projection_class_embeddings_input_dim=6 * 8 + 8, **addition)
    parts = {"text_encoder": first, "text_encoder_2": second, "tokenizer": tokenizer, "tokenizer_2": tokenizer_2}
    return parts | {"vae": autoencoder(), "unet": network, "scheduler": diffusers.EulerDiscreteScheduler(1000)}


def textless(*names):
    return dict.fromkeys((*names, *(name.replace("text_encoder", "tokenizer") for name in names)))


def sd3(_):
    network = diffusers.SD3Transformer2DModel(8, 2, 4, 1, 4, 2, 8, 8, 8, 4, 8)
    parts = textless("text_encoder", "text_encoder_2", "text_encoder_3") | {"transformer": network}
    return parts | {
        "vae": autoencoder(shift_factor=0.1),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0),
    }


def flux(_):
    network = diffusers.FluxTransformer2DModel(1, 16, None, 1, 1, 8, 2, 8, 8, False, (2, 2, 4))
    parts = textless("text_encoder", "text_encoder_2") | {"transformer": network}
    return parts | {
        "vae": autoencoder(shift_factor=0.1),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0),
    }


def pixart(folder):
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -1.0), ("b", -1.0), ("c", -1.0)]
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": len(pieces)}
    encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes, decoder_start_token_id=0))
    network = diffusers.PixArtTransformer2DModel(
        2, 4, out_channels=8, num_layers=1, norm_num_groups=2, cross_attention_dim=8, sample_size=8,
        caption_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    parts = {"tokenizer": transformers.T5Tokenizer(vocab=pieces, extra_ids=0), "text_encoder": encoder}
    return parts | {"vae": autoencoder(), "transformer": network, "scheduler": diffusers.DPMSolverMultistepScheduler()}


def sana(_):
    blocks = {f"{half}_block_out_channels": (4, 4, 4) for half in ("encoder", "decoder")}
    blocks |= {f"{half}_layers_per_block": (1, 1, 1) for half in ("encoder", "decoder")}
    blocks |= {f"{half}_qkv_multiscales": ((), (), ()) for half in ("encoder", "decoder")}
    vae = diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, **blocks, scaling_factor=0.5)
    network = diffusers.SanaTransformer2DModel(4, 4, 2, 4, 1, 2, 4, 8, 8, sample_size=8)
    parts = textless("text_encoder") | {"transformer": network, "vae": vae}
    return parts | {"scheduler": FLOW}


def dit(_):
    network = diffusers.DiTTransformer2DModel(2, 4, 4, 8, 1, norm_num_groups=2, sample_size=8)
    return {"transformer": network, "vae": autoencoder(), "scheduler": DDIM}


def latent_diffusion(_):
    vqvae = diffusers.VQModel(block_out_channels=(4,), norm_num_groups=2, num_vq_embeddings=16, sample_size=8)
    return {
        "vqvae": vqvae,
        "unet": tiny_unet(3),
        "scheduler": diffusers.DDIMScheduler(1000, clip_sample=False, steps_offset=1),
    }


def wan(_):
    vae = diffusers.AutoencoderKLWan(
        4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, scale_factor_temporal=2, scale_factor_spatial=2,
    )  # fmt: skip
    network = diffusers.WanTransformer3DModel((1, 2, 2), 2, 8, 4, 4, 8, 8, 8, 1)
    return textless("text_encoder") | {"vae": vae, "transformer": network, "scheduler": FLOW}


def ltx(_):
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(4,), down_block_types=("LTXVideoDownBlock3D",),
        decoder_block_out_channels=(4,), layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("conv",), upsample_residual=(False,), upsample_factor=(1,), patch_size=2,
    )  # fmt: skip
    network = diffusers.LTXVideoTransformer3DModel(4, 4, 1, 1, 2, 8, 16, 1, caption_channels=8)
    return textless("text_encoder") | {"vae": vae, "transformer": network, "scheduler": FLOW}


def embeds(*names, seed=0):
    """Return given embeddings of one prompt, tokens by 8 numbers, pooled ones 8 numbers, masks of ones."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (1, 8) if "pooled" in name else (1, 3, 8) for name in names}
    return {
        name: torch.ones(1, 3) if name.endswith("mask") else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def picture(seed=0):
    values = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def half_mask():
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 4))
    return mask


CONSISTENCY = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
VIDEO = {"height": 16, "width": 16, "num_frames": 3}
MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
BOTH = ("prompt_embeds", "negative_prompt_embeds")
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
SMALL, LARGE = {"height": 8, "width": 8}, {"height": 32, "width": 32}

FAMILIES = {
    "ddpm": Family("DDPMPipeline", pixels(diffusers.DDPMScheduler(1000)), (1, 8, 8), stochastic=True, clipped=True),
    "ddim": Family(
        "DDIMPipeline", pixels(diffusers.DDIMScheduler(1000)), (1, 8, 8), {"eta": 1.0}, stochastic=True, clipped=True
    ),
    "pndm": Family(
        "PNDMPipeline",
        pixels(diffusers.PNDMScheduler(1000, skip_prk_steps=True)),
        (1, 8, 8),
        evaluations=3,
        clipped=True,
    ),
    "stable diffusion": Family(
        "StableDiffusionPipeline", stable_diffusion(), (4, 8, 8), {"eta": 1.0}, PROMPTS, stochastic=True, evaluations=4
    ),
    "sdxl": Family("StableDiffusionXLPipeline", sdxl, (4, 8, 8), {"guidance_scale": 1.0}, PROMPTS),
    "sd3": Family("StableDiffusion3Pipeline", sd3, (4, 8, 8), SMALL | embeds(*BOTH, *POOLED), evaluations=4),
    "flux": Family("FluxPipeline", flux, (4, 8, 8), SMALL | embeds("prompt_embeds", "pooled_prompt_embeds")),
    "pixart": Family(
        "PixArtAlphaPipeline",
        pixart,
        (4, 8, 8),
        {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 6},
        PROMPTS,
        evaluations=4,
    ),
    "sana": Family(
        "SanaPipeline",
        sana,
        (4, 8, 8),
        LARGE | {"use_resolution_binning": False, "negative_prompt": None} | embeds(*BOTH, *MASKS),
        evaluations=4,
    ),
    "dit": Family("DiTPipeline", dit, (4, 8, 8), classes=1000, evaluations=4, clipped=True),
    "latent diffusion": Family("LDMPipeline", latent_diffusion, (3, 8, 8), {"eta": 1.0}, stochastic=True, clipped=True),
    "consistency": Family("ConsistencyModelPipeline", pixels(CONSISTENCY, 3), (3, 8, 8), stochastic=True, clipped=True),
    "wan, a video": Family("WanPipeline", wan, (4, 2, 8, 8), VIDEO | embeds(*BOTH), evaluations=4),
    "ltx, a packed video": Family(
        "LTXPipeline", ltx, (4, 2, 8, 8), LARGE | {"num_frames": 3} | embeds(*BOTH, *MASKS), evaluations=4
    ),
    "image to image": Family(
        "StableDiffusionImg2ImgPipeline",
        stable_diffusion(),
        (4, 8, 8),
        {"image": picture(), "strength": 0.6},
        PROMPTS,
        evaluations=2,
    ),
    "inpainting": Family(
        "StableDiffusionInpaintPipeline",
        stable_diffusion(channels=9),
        (4, 8, 8),
        SMALL | {"image": picture(), "mask_image": half_mask()},
        PROMPTS,
        evaluations=4,
    ),
}
