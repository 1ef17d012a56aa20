"""Models of timm and Hugging Face with their own preprocessing, at random weights: notebook 09's appendix."""

import pytest
import timm
import torch
import transformers

from repsim import cka, shapes, taps

IMAGES = shapes.draw(24, size=32, stream="zoo")[0]


def timm_model():
    model = timm.create_model("convnext_atto")
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model.eval(), lambda x: prepare(x / 255), "stages.2"


def hugging_face_model():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return transformers.ViTModel(config).eval(), lambda x: dict(processor(x, return_tensors="pt")), "layers.1"


@pytest.fixture(params=[timm_model, hugging_face_model])
def model(request):
    torch.manual_seed(0)
    network, transform, layer = request.param()
    layer = next(path for path, _ in network.named_modules() if path.endswith(layer) or path == "encoder.layer.1")
    return network, transform, layer


def output(network, inputs, layer):
    """What the module gives, read by a hook of its own."""
    kept = []
    hook = network.get_submodule(layer).register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.no_grad():
        network(**inputs) if isinstance(inputs, dict) else network(inputs)
    hook.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


def test_a_layer_is_compared_as_its_own_preprocessing_and_output_make_it(model):
    network, transform, layer = model
    x = output(network, transform(IMAGES), layer)
    y = torch.randn(len(IMAGES), 5, generator=torch.Generator().manual_seed(0)) + x.flatten(1)[:, :5]
    compared = cka.compare(
        {"net": network},
        IMAGES,
        features={"y": y},
        layers={"net": [layer]},
        transform={"net": transform},
        batch_size=len(IMAGES),
    )
    assert compared.matrix("net", "y").iloc[0, 0] == pytest.approx(cka.cka(x, y), abs=1e-5)


def test_pooled_features_are_means_over_what_the_model_has_as_positions(model):
    network, transform, layer = model
    x = output(network, transform(IMAGES), layer)
    positions = (2, 3) if x.ndim == 4 else 1
    read = taps.pooled(network, IMAGES, [layer], transform=transform)[layer]
    torch.testing.assert_close(read, x.mean(positions), atol=1e-5, rtol=1e-4)


def test_without_its_preprocessing_a_model_sees_other_images(model):
    network, transform, layer = model
    with_own = output(network, transform(IMAGES), layer)
    inputs = transform(IMAGES)
    plain = {"pixel_values": IMAGES / 255.0} if isinstance(inputs, dict) else IMAGES / 255.0
    without = output(network, plain, layer)
    assert with_own.shape != without.shape or not torch.allclose(with_own, without, atol=1e-2)


def test_patterns_name_the_blocks_of_both_kinds():
    for make in (timm_model, hugging_face_model):
        network, transform, _ = make()
        pattern = "stages.*" if isinstance(transform(IMAGES), torch.Tensor) else None
        blocks = [p for p, m in network.named_modules() if type(m).__name__ in ("ConvNeXtStage", "ViTLayer")]
        layers = pattern or ["*".join(blocks[0].rsplit("0", 1))]
        found = cka.compare({"net": network}, IMAGES, layers=layers, transform=transform, batch_size=8)
        assert found.layers("net") == blocks
