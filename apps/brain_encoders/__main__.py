"""apps.brain_encoders VERB ...: fit, evaluate, run and serve brain encoders."""

from apps.brain_encoders import config
from shared.cli import run, verb
from shared.data.config import FetchConfig, ListConfig, VerifyConfig

VERBS = {
    "train": verb("apps.brain_encoders.training:train", config.TrainConfig),
    "evaluate": verb("apps.brain_encoders.evaluation:evaluate", config.EvaluateConfig),
    "generalise": verb("apps.brain_encoders.generalise:generalise", config.GeneraliseConfig),
    "series": verb("apps.brain_encoders.series:fit_series", config.SeriesConfig),
    "categories": verb("apps.brain_encoders.categories:fit_categories", config.CategoriesConfig),
    "similarity": verb("apps.brain_encoders.similarity:compare_similarity", config.SimilarityConfig),
    "voxelwise": verb("apps.brain_encoders.voxelwise:fit_voxelwise", config.VoxelwiseConfig),
    "compare": verb("apps.brain_encoders.compare:compare", config.CompareConfig),
    "infer": verb("apps.brain_encoders.inference:infer", config.BrainInferConfig),
    "serve": verb("apps.brain_encoders.inference:serve", config.BrainServeConfig),
    "export": verb("apps.brain_encoders.export:export", config.ExportConfig),
    "convert": verb("apps.brain_encoders.published:convert", config.BrainConvertConfig),
    "data": {
        "list": verb("shared.data.commands:list_data", ListConfig),
        "fetch": verb("shared.data.commands:fetch_data", FetchConfig, positional="name"),
        "verify": verb("shared.data.commands:verify_data", VerifyConfig, positional="name"),
        "phantom": verb("apps.brain_encoders.data:make_phantoms", config.PhantomConfig),
    },
}


def main() -> None:
    """The console script."""
    run("apps.brain_encoders", VERBS)


if __name__ == "__main__":
    main()
