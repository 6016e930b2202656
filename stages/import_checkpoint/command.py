"""The command `import-checkpoint`."""

import click

from stages.config.options import CONFIG, SET, json_option, with_options


@click.command("import-checkpoint", short_help="Make a teacher of a published checkpoint.")
@click.argument("source", metavar="FILE|FOLDER", required=False)
@click.argument("output", metavar="OUT.safetensors", required=False)
@click.option("--model", metavar="NAME", help="A network of `pipeline.py models`; change it by --set model.KEY=.")
@click.option("--class-order", "classes", help="Its classes: a file with one name per line, or a prepared data set.")
@click.option("--size", type=int, help="Pixels of its square input.  [default: 224, or what the folder says]")
@click.option(
    "--format",
    type=click.Choice(["auto", "mmaction2", "rkd", "torchvision", "timm", "mit", "pytorchvideo"]),
    help="[default: by its keys]",
)
@click.option(
    "--part",
    type=click.Choice(["student", "teacher"]),
    help="Which network of an rkd container of upstream.",
)
@click.option("--head", type=click.Choice(["keep", "reinit", "drop"]), help="The classifier.  [default: keep]")
@CONFIG
@SET
@json_option
def import_checkpoint(config_file, overrides, model, **options):
    """Convert a checkpoint of mmaction2, upstream (ResKD), torchvision, timm, MIT's TSM or pytorchvideo into one of this
    program, or a folder of Hugging Face's (config.json, model.safetensors): VideoMAE, TimeSformer, ViViT, V-JEPA 2, and
    per frame ViT, DeiT, DINOv2, DINOv3 and ConvNeXt.

    \b
    import-checkpoint r50.pth teacher.safetensors --model tsn_r50 --class-order data/train
    import-checkpoint videomae-base-finetuned-kinetics teacher.safetensors --class-order data/train
    import-checkpoint dinov2-base base.safetensors --class-order data/train --head drop

    A folder says which network, size and pixels; it needs transformers: `uv run --extra hf pipeline.py import-checkpoint
    ...`. Its code is never run. A name such as facebook/dinov2-base that is no path is fetched from Hugging Face's hub.

    FILE, FOLDER and OUT may be at a URL (s3://...).

    The check is strict: every missing, unexpected or mis-shaped weight is listed. The weights of a 2D network are
    inflated for a 3D model. Only tensors are read: a file that holds code is refused. --head reinit replaces a
    classifier of other classes by a fresh one; --head drop replaces any classifier.
    """
    from stages.config.file import load_config
    from stages.import_checkpoint.config import ImportConfig
    from stages.import_checkpoint.import_checkpoint import import_checkpoint
    from stages.models.zoo import named_model

    if model:
        options["model"] = named_model(model).model_dump(mode="json", exclude={"num_classes"})
    return import_checkpoint(load_config(ImportConfig, config_file, with_options(options, overrides)))
