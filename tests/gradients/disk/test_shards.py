import torch

from param_features.gradients.disk.shards import ShardFile, ShardWriter, columns_of


def test_one_sample_cut_from_a_table_of_many_positions_is_written(tmp_path):
    table = torch.arange(64).reshape(1, 64)
    with ShardWriter(tmp_path / "one.safetensors", columns_of({}), 1) as writer:
        writer.add({"row": torch.tensor([3]), "position": table[:, 5]})
        writer.finish()
    assert [column.tolist() for column in ShardFile(tmp_path / "one.safetensors").places] == [[3], [5]]
