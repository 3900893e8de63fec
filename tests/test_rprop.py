"""Rprop: equal to a naive oracle and to PyTorch's; compiles; survives its configuration."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mnn.rprop import Rprop
from tests.reference.rprop_oracle import rprop_steps


def test_equals_the_oracle_step_by_step(rng):
    gradients = rng.standard_normal((60, 12)).astype(np.float32)
    gradients[rng.random(gradients.shape) < 0.1] = 0
    gradients[:30, :6] = np.abs(gradients[:30, :6])  # up to the largest step
    gradients[30:, 6:] *= (-1) ** np.arange(30)[:, None] * np.sign(gradients[30:, 6:])
    start = rng.standard_normal(12)
    optimizer = Rprop(1e-2, max_step=0.5, min_step=1e-3)
    variable = keras.Variable(start.astype(np.float32))
    optimizer.build([variable])
    oracle = rprop_steps(start, gradients, 1e-2, 0.5, 1.5, 1e-3, 0.5)
    for gradient, expected in zip(gradients, oracle, strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-5)
    steps = optimizer.variables[2].numpy()
    assert steps.max() <= 0.5 and steps.min() >= np.float32(1e-3)


def test_signs_of_the_smallest_gradients_count():
    """1e-30 squared is no float32: the product of two gradients would be lost."""
    variable = keras.Variable(np.zeros(1, np.float32))
    optimizer = Rprop(1e-2)
    optimizer.build([variable])
    for _ in range(2):
        optimizer.apply([keras.ops.convert_to_tensor(np.array([1e-30], np.float32))], [variable])
    assert_allclose(variable.numpy(), [-0.025], rtol=1e-6, atol=0)


def test_equals_pytorch_on_a_toy_problem(rng):
    torch = pytest.importorskip("torch")
    matrix = rng.standard_normal((20, 5)).astype(np.float32)
    target = rng.standard_normal(20).astype(np.float32)
    start = rng.standard_normal(5).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start.copy()))
    their_optimizer = torch.optim.Rprop([theirs], lr=1e-3, etas=(0.5, 1.5), step_sizes=(1e-7, 0.1))
    ours = keras.Variable(start)
    optimizer = Rprop()
    optimizer.build([ours])
    for _ in range(80):
        their_optimizer.zero_grad()
        loss = ((torch.tensor(matrix) @ theirs - torch.tensor(target)) ** 2).sum()
        loss.backward()
        gradient = 2 * matrix.T @ (matrix @ ours.numpy() - target)
        assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-2, atol=1e-3)
        their_optimizer.step()
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [ours])
        assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    best = np.linalg.lstsq(matrix, target)[0]
    assert_allclose(ours.numpy(), best, rtol=0, atol=0.02)


def test_trains_a_compiled_model(rng):
    inputs = rng.standard_normal((64, 4)).astype(np.float32)
    targets = inputs @ rng.standard_normal((4, 2)).astype(np.float32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(Rprop(1e-2), loss="mse", jit_compile=False)
    errors = [float(model.train_on_batch(inputs, targets)) for _ in range(60)]
    model.reset_metrics()
    assert float(model.test_on_batch(inputs, targets)) < 0.02 * errors[0]
    history = model.fit(inputs, targets, batch_size=16, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(history).all()


def test_the_size_of_the_loss_does_not_matter(rng):
    gradients = rng.standard_normal((20, 3)).astype(np.float32)

    def weights_after(factor):
        variable = keras.Variable(np.zeros(3, np.float32))
        optimizer = Rprop()
        optimizer.build([variable])
        for gradient in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(factor * gradient)], [variable])
        return variable.numpy()

    assert_array_equal(weights_after(np.float32(1)), weights_after(np.float32(1000)))


def test_comes_back_from_its_configuration():
    optimizer = Rprop(2e-3, 0.4, 1.2, 1e-6, 0.05)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is Rprop and again.get_config() == optimizer.get_config()
    assert Rprop.from_config(optimizer.get_config()).max_step == 0.05
    assert optimizer.get_config()["backtracking"] == 0.4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"backtracking": 1.5}, "backtracking is 1.5"),
        ({"acceleration": 0.9}, "acceleration 0.9"),
        ({"initial_step": 1.0}, "initial_step is 1.0"),
        ({"min_step": 0.0}, r"min_step \(0.0\)"),
    ],
)
def test_constants_out_of_range_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Rprop(**settings)
