"""iRprop- weight by weight in plain Python (Igel and Huesken 2000, Table 4)."""


def rprop_steps(weights, gradients, first, shrink, grow, lowest, highest):
    """Yields the list of weights after each list of gradients."""
    weights = [float(w) for w in weights]
    steps = [first] * len(weights)
    before = [0.0] * len(weights)
    for gradient in gradients:
        for i, g in enumerate(gradient):
            g = float(g)
            if g * before[i] > 0:
                steps[i] = min(steps[i] * grow, highest)
            elif g * before[i] < 0:
                steps[i] = max(steps[i] * shrink, lowest)
                g = 0.0
            if g > 0:
                weights[i] -= steps[i]
            elif g < 0:
                weights[i] += steps[i]
            before[i] = g
        yield list(weights)
