import pytest
import torch

from evidence.papers.graph_model import (
    GRAPHS,
    MAIN,
    NODES,
    SETTINGS,
    Setting,
    Tasks,
    adjacency,
    draw_tasks,
    excess,
    map_error,
    random_graph,
    slope_by_degree,
    train_models,
    true_map,
)
from exsel.cli.display import RunLines


def trained(tasks, variants, steps=300, **kwargs):
    return train_models(tasks, variants, has_softmax_head=False, steps=steps, progress=RunLines(), **kwargs)


def test_true_map_of_a_path():
    target = true_map(adjacency(GRAPHS["path"]))
    assert target[0].tolist() == [0.5, 0.5, *[0] * 6]
    assert target[1].tolist() == pytest.approx([1 / 3] * 3 + [0] * 5)


def test_numbers_of_uniform_attention_by_hand():
    # A star: 7 leaves with 2 possible tokens, and a centre with all 8, which uniform attention gets right.
    target = true_map(adjacency(GRAPHS["star"]))
    uniform = torch.full((NODES, NODES), 1 / 8)
    assert excess(target, uniform.log()).item() == pytest.approx(7 / 8 * torch.tensor(4.0).log().item())
    assert map_error(target, uniform).item() == pytest.approx(7 * (2 * 3 / 8 + 6 / 8))
    assert excess(target, target.clamp_min(1e-30).log()).item() == pytest.approx(0, abs=1e-6)
    assert map_error(target, target).item() == 0


def test_random_graphs_are_connected_with_several_degrees():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        graph = random_graph(generator)
        assert torch.equal(graph, graph.T)
        assert graph.diagonal().sum() == 0
        assert len(set(graph.sum(-1).tolist())) > 1
        reached = {0}
        for _ in range(NODES):
            reached |= {j for i in reached for j in range(NODES) if graph[i, j]}
        assert len(reached) == NODES


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_embeddings_have_norm_one(setting):
    tasks = draw_tasks(setting, 2, torch.Generator().manual_seed(0), width=16)
    assert tasks.embeddings.shape == (2, NODES, 16)
    torch.testing.assert_close(tasks.embeddings.norm(dim=-1), torch.ones(2, NODES))
    assert (tasks.embeddings[..., setting.dimension :] == 0).all()


def test_loss_begins_at_that_of_uniform_attention_and_falls():
    tasks = draw_tasks(MAIN, 2, torch.Generator().manual_seed(0), width=8)
    history = trained(tasks, ["plain", "selective"])
    uniform = torch.full((NODES, NODES), 1 / 8).log()
    torch.testing.assert_close(history.excess[0], excess(true_map(tasks.graphs), uniform))
    assert (history.excess[-1] < history.excess[0]).all()
    assert history.steps[0] == 0
    assert history.steps[-1] == 300
    assert len(history.steps) == len(history.excess)


def test_which_temperatures_are_learned():
    one = draw_tasks(Setting(graph="star"), 1, torch.Generator().manual_seed(0), width=8)
    history = trained(Tasks.join([one] * 3), ["plain", "constant temperature", "selective"])
    plain, constant, selective = history.tau
    assert plain.tolist() == [1.0] * NODES
    assert len(set(constant.tolist())) == 1
    assert constant[0] > 1
    # A star has two degrees, and its centre wants a flat row.
    assert len(set(selective.tolist())) == 2
    assert selective[0] < selective[1]


def test_models_train_by_themselves():
    tasks = draw_tasks(MAIN, 3, torch.Generator().manual_seed(0), width=8)
    together = trained(tasks, ["selective"] * 3)
    second = Tasks(graphs=tasks.graphs[1:2], embeddings=tasks.embeddings[1:2], heads=tasks.heads[1:2])
    alone = trained(second, ["selective"])
    torch.testing.assert_close(together.excess[:, 1:2], alone.excess)
    torch.testing.assert_close(together.tau[1:2], alone.tau)


def test_padding_changes_nothing():
    narrow = draw_tasks(MAIN, 2, torch.Generator().manual_seed(0), width=8)
    wide = draw_tasks(MAIN, 2, torch.Generator().manual_seed(0), width=16)
    torch.testing.assert_close(trained(narrow, ["selective"] * 2).excess, trained(wide, ["selective"] * 2).excess)


def test_slope_counts_each_degree_once():
    graphs = adjacency(GRAPHS["star"]).unsqueeze(0)
    tau = torch.tensor([[1.0, *[4.0] * 7]])
    assert slope_by_degree(graphs, tau).tolist() == pytest.approx([-0.5])
