"""timm's ResNets compute the same here, from a file, with random statistics of their norms."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install .[peers]")
timm = pytest.importorskip("timm", reason="timm is not installed: pip install .[peers]")

from vit_jax.pretrained.load import load_pretrained  # noqa: E402


@pytest.mark.parametrize("name", ["resnet50", "resnet50_gn", "resnet101"])
def test_logits_are_timms(name, tmp_path):
    generator = torch.Generator().manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    for of, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
        if tensor.ndim == 1 and tensor.dtype.is_floating_point:  # of norms, and the head's bias
            centre = 1.0 if of.endswith(("weight", "running_var")) else 0.0
            tensor.data.copy_(centre + 0.1 * torch.randn(tensor.shape, generator=generator))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model, params, _ = load_pretrained(tmp_path / "a.pth", image_size=(96, 64), say=None)
    x = np.random.default_rng(0).standard_normal((2, 96, 64, 3)).astype(np.float32)
    ours, _ = jax.jit(model.apply)(params, x)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-4 * np.abs(wanted).max())
