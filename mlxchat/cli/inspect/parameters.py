"""`mlxchat inspect parameters`: every tensor of a model, and which part of it takes how much."""

from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.choices import choose_adapter
from mlxchat.cli.inspect.looking import Json, look_options, show
from mlxchat.cli.options import resolve_model
from mlxchat.settings import load_settings

if TYPE_CHECKING:
    from mlxchat.lens.parameters import ParameterView


@click.command()
@click.option("--all", "shows_all", is_flag=True, help="List every tensor, not only layer 0's.")
@look_options()
def parameters(shows_all: bool, model: str | None, adapter: str | None, **out: Any) -> None:
    """Show every tensor of a model and how many parameters and bytes each part takes."""
    from mlxchat.lens.parameters import read_parameters
    from mlxchat.model.hub import resolve_model as find_folder

    settings = load_settings()
    wanted = resolve_model(model, settings)
    folder = find_folder(wanted)
    view = read_parameters(folder.path, choose_adapter(settings, wanted, adapter))
    name = folder.name_with(view.adapter)
    from mlxchat.cli.inspect import render_shape

    show(
        to_json(view),
        lambda console: render_shape.make_parameter_view(view, name, shows_all=shows_all),
        lambda: render_shape.make_parameter_page(view, name),
        **out,
    )


def to_json(view: "ParameterView") -> Json:
    """Returns what `--json` prints; shapes are those of the file."""
    groups: Json = {}
    for name in view.groups:
        num_tensors, params, num_bytes = view.group(name)
        groups[name] = {
            "tensors": num_tensors,
            "params": params,
            "bytes": num_bytes,
            "share": params / (view.total_params or 1),
        }
    groups["head"]["tied"] = view.is_tied
    return {
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "dtype": t.dtype,
                "bits": t.bits,
                "bytes": t.nbytes,
                "params": t.params,
                "group": t.group,
            }
            for t in view.tensors
        ],
        "groups": groups,
        "total_params": view.total_params,
        "total_bytes": view.total_bytes,
    }
