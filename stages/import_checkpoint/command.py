"""The command `import-checkpoint`."""

import click

from stages.config.options import CONFIG, SET, with_options


@click.command("import-checkpoint")
@click.argument("source", metavar="IN", required=False)
@click.argument("output", metavar="OUT.safetensors", required=False)
@click.option("--model", metavar="NAME", help="A network of `pipeline.py models`; anything else by --set model.KEY=.")
@click.option("--class-order", "classes", help="Its classes: a file of one name a line, or a prepared data set.")
@click.option("--size", type=int, help="px of its input.  [default: 224]")
@click.option(
    "--format", type=click.Choice(["auto", "mmaction2", "rkd", "torchvision", "timm"]), help="[default: by its keys]"
)
@click.option("--part", type=click.Choice(["student", "teacher"]), help="Of the seed's rkd containers.")
@click.option("--head", type=click.Choice(["keep", "reinit", "drop"]), help="The classifier.  [default: keep]")
@CONFIG
@SET
def import_checkpoint(config_file, overrides, model, **options):
    """Make a checkpoint of mmaction2, the seed, torchvision or timm one of ours.

    Strict: every missing, unexpected or mis-shaped weight is listed. A 2D net's weights are inflated where the model
    is 3D. Files are read as plain tensors: one that holds code is refused. --head reinit replaces a classifier of other
    classes by a fresh one, drop any.
    """
    from stages.config.file import load_config
    from stages.import_checkpoint.config import ImportConfig
    from stages.import_checkpoint.import_checkpoint import import_checkpoint
    from stages.models.zoo import named_model

    if model:
        options["model"] = named_model(model).model_dump(mode="json", exclude={"num_classes"})
    import_checkpoint(load_config(ImportConfig, config_file, with_options(options, overrides)))
