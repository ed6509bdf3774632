"""Circuits made by hand, for whatever shows or writes one."""

import random

from param_features.circuits import Circuit, Edge, Node, NodeExample

PROMPT = ("<s>", "Once", " upon", " a", " time", ",", " Lily", " saw", " a", " cat", ".")


def example(at: int = 4, strength: float = 1.0, tokens: tuple[str, ...] = PROMPT) -> NodeExample:
    strengths = tuple(strength * (1.0 if i == at else 0.15 * ((i + at) % 4)) for i in range(len(tokens)))
    return NodeExample(tokens, strengths, at)


def small_circuit() -> Circuit:
    """Twelve nodes: two parameters and an SAE, each with an error, and the metric."""
    draw = random.Random(0)
    nodes = []
    for depth, (group, kind) in enumerate(
        (("blocks.0.attn.W_K", "parameter"), ("blocks.1.hook_resid_pre", "sae"), ("blocks.2.mlp.W_in", "parameter"))
    ):
        features = [3, 17, 40, 5][: 3 if kind == "sae" else 2 + depth // 2]
        for k in features:
            effects = tuple(draw.gauss(0.4 if k % 2 else -0.2, 0.1) for _ in range(4))
            shown = tuple(example(2 + (k + i) % 8, draw.choice((-1, 1)) * draw.uniform(0.5, 2)) for i in range(2))
            nodes.append(Node(f"{group}/{k}", group, kind, depth, effects, k, f"on “{PROMPT[2 + k % 8].strip()}”", shown))
        nodes.append(Node(f"{group}/error", group, "error", depth, tuple(draw.gauss(0.05, 0.02) for _ in range(4))))
    nodes.append(Node("metric", "metric", "output", 3, (), label="logit difference"))
    inner = [node for node in nodes if node.kind != "output"]
    edges = [
        Edge(a.name, b.name, draw.gauss(0, 0.2)) for a in inner for b in inner if a.depth < b.depth and draw.random() < 0.5
    ]
    edges += [Edge(node.name, "metric", node.effect) for node in inner]
    scores = {
        "faithfulness": 0.86, "faithfulness_random": 0.12, "faithfulness_matched": 0.2,
        "completeness": 0.1, "completeness_random": 0.93, "minimality": 0.04,
    }  # fmt: skip
    record = {"ablation": "mean", "method": "attribution", "threshold": 0.01, "correlation": 0.97}
    return Circuit(
        tuple(nodes), tuple(edges), (PROMPT, PROMPT[:6], PROMPT[:9], PROMPT[:4]), "logit(he) − logit(she)", record, scores
    )


def large_circuit(n_nodes: int = 60) -> Circuit:
    """Parameters of four layers and two SAEs; columns of up to nine nodes."""
    draw = random.Random(1)
    groups = [f"blocks.{layer}.{name}" for layer in range(4) for name in ("attn.W_K", "attn.W_O", "mlp.W_in")]
    groups[4:4], groups[9:9] = ["blocks.1.hook_resid_pre"], ["blocks.3.hook_resid_pre"]
    nodes = []
    for number in range(n_nodes - 1):
        depth = number % 7 if number < 14 else draw.randrange(len(groups))
        group = groups[depth]
        kind = "sae" if "hook" in group else "parameter"
        taken = sum(node.group == group for node in nodes)
        if taken == 3 and not any(node.name == f"{group}/error" for node in nodes):
            nodes.append(Node(f"{group}/error", group, "error", depth, (draw.gauss(0, 0.05), 0.01)))
            continue
        k = 11 * number + draw.randrange(10)
        effects = (draw.gauss(0, 0.3), draw.gauss(0, 0.3))
        shown = tuple(example(draw.randrange(2, 10), draw.gauss(0, 2)) for _ in range(draw.randrange(4)))
        label = draw.choice(("", "on “upon”", "after a name → “was”", "often on “the” / “a” → “little”, after “Once”"))
        nodes.append(Node(f"{group}/{k}", group, kind, depth, effects, k, label, shown))
    nodes = [*sorted(nodes, key=lambda node: node.depth), Node("metric", "metric", "output", len(groups), ())]
    edges = [
        Edge(a.name, b.name, draw.gauss(0, 0.1))
        for a in nodes
        for b in nodes
        if 0 < b.depth - a.depth <= 4 and draw.random() < 0.12
    ]
    return Circuit(
        tuple(nodes), tuple(edges), (PROMPT, PROMPT[:6]), "next-token loss", {"ablation": "zero"}, {"faithfulness": 0.7}
    )
