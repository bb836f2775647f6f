"""apps.reversible_unet VERB ...: train, evaluate, run and serve the reversible 3-D U-Net."""

from apps.reversible_unet import config
from shared.cli import run, verb
from shared.data.config import FetchConfig, ListConfig, VerifyConfig

VERBS = {
    "train": verb("apps.reversible_unet.training:train", config.TrainConfig),
    "evaluate": verb("apps.reversible_unet.evaluation:evaluate", config.ReversibleEvaluateConfig),
    "infer": verb("apps.reversible_unet.inference:infer", config.InferVolumesConfig),
    "growth": verb("apps.reversible_unet.inference:growth", config.GrowthConfig),
    "serve": verb("apps.reversible_unet.inference:serve", config.ReversibleServeConfig),
    "export": verb("apps.reversible_unet.inference:export", config.ExportConfig),
    "convert": verb("apps.reversible_unet.published:convert", config.ConvertConfig),
    "memory": verb("apps.reversible_unet.memory:memory", config.MemoryConfig),
    "plan": verb("apps.reversible_unet.planning:plan", config.PlanConfig),
    "data": {
        "list": verb("shared.data.commands:list_data", ListConfig),
        "fetch": verb("shared.data.commands:fetch_data", FetchConfig, positional="name"),
        "verify": verb("shared.data.commands:verify_data", VerifyConfig, positional="name"),
        "phantom": verb("apps.reversible_unet.data:make_phantoms", config.ReversiblePhantomConfig),
    },
}


def main() -> None:
    """The console script."""
    run("apps.reversible_unet", VERBS)


if __name__ == "__main__":
    main()
