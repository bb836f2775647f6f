"""apps.pranet VERB ...: train, evaluate, run and serve PraNet."""

from apps.pranet import config
from shared.cli import run, verb
from shared.data.config import FetchConfig, ListConfig, VerifyConfig

VERBS = {
    "train": verb("apps.pranet.training:train", config.TrainConfig),
    "evaluate": verb("apps.pranet.evaluation:evaluate", config.EvaluateConfig),
    "infer": verb("apps.pranet.inference:infer", config.PraNetInferConfig),
    "serve": verb("apps.pranet.inference:serve", config.PraNetServeConfig),
    "export": verb("apps.pranet.export:export", config.ExportConfig),
    "convert": verb("apps.pranet.published:convert", config.ConvertConfig),
    "data": {
        "list": verb("shared.data.commands:list_data", ListConfig),
        "fetch": verb("shared.data.commands:fetch_data", FetchConfig, positional="name"),
        "verify": verb("shared.data.commands:verify_data", VerifyConfig, positional="name"),
        "phantom": verb("apps.pranet.data:make_phantoms", config.PhantomConfig),
    },
}


def main() -> None:
    """The console script."""
    run("apps.pranet", VERBS)


if __name__ == "__main__":
    main()
