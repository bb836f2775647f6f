"""apps.acmil VERB ...: tile, make features, train, evaluate, run and serve ACMIL."""

from apps.acmil import config, config_pipeline
from shared.cli import run, verb
from shared.data.config import FetchConfig, ListConfig, VerifyConfig

VERBS = {
    "tile": verb("apps.acmil.tiling:tile", config_pipeline.TileConfig),
    "features": verb("apps.acmil.features:features", config_pipeline.FeaturesConfig),
    "train": verb("apps.acmil.training:train", config.TrainConfig),
    "evaluate": verb("apps.acmil.evaluation:evaluate", config.EvaluateConfig),
    "infer": verb("apps.acmil.inference:infer", config.ACMILInferConfig),
    "serve": verb("apps.acmil.inference:serve", config.ACMILServeConfig),
    "export": verb("apps.acmil.export:export", config.ExportConfig),
    "convert": verb("apps.acmil.published:convert", config.ACMILConvertConfig),
    "data": {
        "list": verb("shared.data.commands:list_data", ListConfig),
        "fetch": verb("shared.data.commands:fetch_data", FetchConfig, positional="name"),
        "verify": verb("shared.data.commands:verify_data", VerifyConfig, positional="name"),
        "phantom": verb("apps.acmil.phantoms:make_phantoms", config.PhantomConfig),
    },
}


def main() -> None:
    """The console script."""
    run("apps.acmil", VERBS)


if __name__ == "__main__":
    main()
