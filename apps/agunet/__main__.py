"""apps.agunet VERB ...: train, evaluate, run and serve AGUNet and DAUNet."""

from apps.agunet import config
from shared.cli import run, verb
from shared.data.config import FetchConfig, ListConfig, VerifyConfig

VERBS = {
    "train": verb("apps.agunet.training:train", config.TrainConfig),
    "evaluate": verb("apps.agunet.evaluation:evaluate", config.AGUNetEvaluateConfig),
    "infer": verb("apps.agunet.inference:infer", config.InferVolumesConfig),
    "growth": verb("apps.agunet.inference:growth", config.GrowthConfig),
    "serve": verb("apps.agunet.inference:serve", config.AGUNetServeConfig),
    "export": verb("apps.agunet.inference:export", config.ExportConfig),
    "convert": verb("apps.agunet.published:convert", config.AGUNetConvertConfig),
    "data": {
        "list": verb("shared.data.commands:list_data", ListConfig),
        "fetch": verb("shared.data.commands:fetch_data", FetchConfig, positional="name"),
        "verify": verb("shared.data.commands:verify_data", VerifyConfig, positional="name"),
        "phantom": verb("apps.agunet.data:make_phantoms", config.AGUNetPhantomConfig),
    },
}


def main() -> None:
    """The console script."""
    run("apps.agunet", VERBS)


if __name__ == "__main__":
    main()
