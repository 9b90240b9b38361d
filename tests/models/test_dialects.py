"""Networks of other conventions in the few lines of notebook 09: a score, a denoiser, an EDM network, a session."""

import types

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, random_mixture

import antinb
from antinb import noise
from antinb.models import diffusion

MIXTURE = random_mixture(dtype=torch.float64)
DATA = 0.5  # the standard deviation that EDM's constants take the data to have
ABAR = diffusion.make_scheduler(LINEAR).alphas_cumprod.double()
SIGMA, ROOT = ((1 - ABAR) / ABAR).sqrt(), ABAR.sqrt()


def denoise(y, sigma):
    """Return the mean of the image given `y = image + sigma noise`, from the posterior of each component."""
    flat = y.flatten(1)
    logits, means = [], []
    for weight, mean, factor, variance in zip(
        MIXTURE.weights, MIXTURE.means, MIXTURE.factors, MIXTURE.variances, strict=True
    ):
        own = factor @ factor.T + variance * torch.eye(len(mean), dtype=torch.float64)
        noisy = own + sigma**2 * torch.eye(len(mean), dtype=torch.float64)
        rest = flat - mean
        solved = torch.linalg.solve(noisy, rest.T).T
        logits.append(weight.log() - (rest * solved).sum(1) / 2 - torch.logdet(noisy) / 2)
        means.append(mean + solved @ own)
    shares = torch.stack(logits, 1).softmax(1)
    return (shares[..., None] * torch.stack(means, 1)).sum(1).view_as(y)


def score(x, abar):
    return (abar.sqrt() * denoise(x / abar.sqrt(), ((1 - abar) / abar).sqrt()) - x) / (1 - abar)


def inner(x, noise_level):
    """EDM's network F, told the quarter of the logarithm of sigma."""
    sigma = (4 * noise_level).exp()
    y = x * (sigma**2 + DATA**2).sqrt()
    skip, out = DATA**2 / (sigma**2 + DATA**2), sigma * DATA / (sigma**2 + DATA**2).sqrt()
    return (denoise(y, sigma) - skip * y) / out


def whole(y, sigma):
    skip, out = DATA**2 / (sigma**2 + DATA**2), sigma * DATA / (sigma**2 + DATA**2).sqrt()
    return skip * y + out * inner(y / (sigma**2 + DATA**2).sqrt(), sigma.log() / 4)


DIALECTS = {
    "score": lambda x, t, _: -(1 - ABAR[t]).sqrt() * score(x, ABAR[t]),
    "denoiser": lambda x, t, _: (x / ROOT[t] - denoise(x / ROOT[t], SIGMA[t])) / SIGMA[t],
    "EDM network": lambda x, t, _: (x / ROOT[t] - whole(x / ROOT[t], SIGMA[t])) / SIGMA[t],
}


@pytest.mark.parametrize("name", DIALECTS)
def test_an_exact_score_in_another_dialect_makes_the_same_images(name):
    settings = {"steps": 6, "clip": False}
    model = diffusion.Diffusion(DIALECTS[name], LINEAR, SHAPE, torch.zeros((), dtype=torch.float64), **settings)
    z = torch.from_numpy(noise.antithetic(3).draw(SHAPE, seed=0)).flatten(0, 1).double()
    known = diffusion.from_mixture(MIXTURE, SHAPE, LINEAR).with_(steps=6)
    torch.testing.assert_close(model.generate(z), known.generate(z), rtol=0, atol=1e-5)


def by_session(session):
    return antinb.load(lambda z: torch.from_numpy(session.run(None, {"z": z.numpy()})[0]), shape=(16,))


def test_a_session_is_a_function_of_arrays():
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    session = types.SimpleNamespace(run=lambda names, feeds: [np.tanh(feeds["z"] @ weight).reshape(-1, 1, 8, 8)])
    run = antinb.sample(by_session(session), noise.antithetic(4), seed=0, progress=False)
    z = noise.antithetic(4).draw((16,), seed=0)
    np.testing.assert_allclose(run["image"], np.tanh(z @ weight).reshape(4, 2, 1, 8, 8), atol=1e-6)
    np.testing.assert_allclose(run["image"][:, 0], -run["image"][:, 1], atol=1e-6)


def test_a_session_of_onnx_runtime():
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    nodes = [
        make.make_node("MatMul", ["z", "weight"], ["flat"]),
        make.make_node("Tanh", ["flat"], ["bent"]),
        make.make_node("Reshape", ["bent", "shape"], ["image"]),
    ]
    known = [onnx.numpy_helper.from_array(weight, "weight")]
    known.append(onnx.numpy_helper.from_array(np.array([-1, 1, 8, 8]), "shape"))
    ends = [make.make_tensor_value_info("z", kind, ["n", 16]), make.make_tensor_value_info("image", kind, None)]
    graph = make.make_graph(nodes, "network", ends[:1], ends[1:], known)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)])
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    run = antinb.sample(by_session(session), noise.antithetic(4), seed=0, progress=False)
    z = noise.antithetic(4).draw((16,), seed=0)
    np.testing.assert_allclose(run["image"], np.tanh(z @ weight).reshape(4, 2, 1, 8, 8), atol=1e-5)
