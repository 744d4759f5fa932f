"""Small detectors, and images with objects, as files."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

from tests.images import encoded, picture

NAMES = ("cat", "dog", "car")
SIDE, QUERIES = 64, 7
_HALVES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": QUERIES,
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
}
_STAGES = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_HYBRID = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [12, 16, 16],
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": QUERIES,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
}


def _resnet(*stages):
    return transformers.ResNetConfig(**_STAGES, out_features=[f"stage{stage}" for stage in stages])


def _yolos():
    return transformers.YolosConfig(
        image_size=[SIDE, SIDE],
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_detection_tokens=QUERIES,
        use_mid_position_embeddings=False,
        initializer_range=0.3,
    )


def _rt_detr():
    stages = {**_STAGES, "out_features": ["stage2", "stage3", "stage4"]}
    return transformers.RTDetrConfig(backbone_config=transformers.RTDetrResNetConfig(**stages), **_HYBRID)


def _d_fine():
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 12, 16],
        stage_mid_channels=[8] * 4,
        stage_out_channels=[8, 12, 16, 16],
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        hidden_sizes=[8, 12, 16, 16],
        depths=[1] * 4,
        embedding_size=8,
        out_features=["stage2", "stage3", "stage4"],
        use_learnable_affine_block=False,
    )
    return transformers.DFineConfig(backbone_config=backbone, **_HYBRID)


CONFIGS = {
    "yolos": _yolos,
    "detr": lambda: transformers.DetrConfig(**_HALVES, backbone_config=_resnet(4)),
    "table_transformer": lambda: transformers.TableTransformerConfig(**_HALVES, backbone_config=_resnet(4)),
    "conditional_detr": lambda: transformers.ConditionalDetrConfig(**_HALVES, backbone_config=_resnet(4)),
    "deformable_detr": lambda: transformers.DeformableDetrConfig(
        **_HALVES, backbone_config=_resnet(2, 3, 4), disable_custom_kernels=True, num_feature_levels=3
    ),
    "rt_detr": _rt_detr,
    "d_fine": _d_fine,
}
SOFTMAX = ("yolos", "detr", "table_transformer")
PROCESSORS = {"yolos": transformers.YolosImageProcessor, "rt_detr": transformers.RTDetrImageProcessor}


def config_of(kind, **changes):
    """A small detector's config, for the three classes."""
    config = CONFIGS[kind]()
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: index for index, name in enumerate(NAMES)}
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def detector(path, kind="yolos", *, seed=0, **changes):
    """A random detector in a folder, with its image processor."""
    torch.manual_seed(seed)
    config = config_of(kind, **changes)
    model = transformers.AutoModelForObjectDetection.from_config(config).eval()
    with torch.no_grad():  # answers that differ from image to image
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(1.5)
    model.save_pretrained(path)
    make = PROCESSORS.get(kind, transformers.DetrImageProcessor)
    make(size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    return Path(path)


def scenes(count, start=0):
    """(bytes, objects) of some images: a rectangle of a class's colour each, or two, or none."""
    found = []
    for seed in range(start, start + count):
        rng, size = np.random.default_rng(seed), (60 + seed % 9, 50 - seed % 7)
        image, boxes, names = picture(seed, size), [], []
        for _ in range(seed % 3):
            width, height = (int(n) for n in rng.integers(8, 20, 2))
            left, top = int(rng.integers(0, size[0] - width)), int(rng.integers(0, size[1] - height))
            place = int(rng.integers(len(NAMES)))
            colour = tuple(255 * (place == channel) for channel in range(3))
            image.paste(Image.new("RGB", (width, height), colour), (left, top))
            boxes.append([float(left), float(top), float(width), float(height)])
            names.append(NAMES[place])
        kind = ("PNG", "JPEG", "WEBP")[seed % 3]
        found.append((encoded(image, kind), {"bbox": boxes, "category": names}))
    return found


def write_scenes(path, rows, *, ids=None):
    """As Hugging Face `datasets` keeps them."""
    objects = pa.struct({"bbox": pa.list_(pa.list_(pa.float32())), "category": pa.list_(pa.string())})
    table = {
        "image": pa.array([{"bytes": data, "path": None} for data, _ in rows]),
        "objects": pa.array([known for _, known in rows], objects),
    }
    if ids is not None:
        table["id"] = pa.array(list(ids))
    pq.write_table(pa.table(table), path)
    return Path(path)


def detected(folder, count):
    """A corpus and its detector, by the names that calls have for them."""
    return {
        "scenes": write_scenes(folder / "scenes.parquet", scenes(count)),
        "detector": detector(folder / "detector"),
    }


@torch.inference_mode()
def by_hand(teacher, data):
    """Scores and boxes of one image, as anybody would ask for them."""
    processor = transformers.AutoImageProcessor.from_pretrained(teacher)
    model = transformers.AutoModelForObjectDetection.from_pretrained(teacher, dtype=torch.float32).eval()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    output = model(**processor(images=image, return_tensors="pt"))
    return output.logits[0].numpy(), output.pred_boxes[0].numpy()
