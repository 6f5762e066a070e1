"""Reading one yaml file, by whomever it was written."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyllm.errors import UserError


def read_yaml(file: Path, *, what: str = "unreadable configuration file") -> Any:
    """The content of a file as plain containers, interpolations as they stand.

    OmegaConf's reader takes ``1e-3`` for the number it is, and refuses a key that is given twice.

    Raises:
        UserError: there is no such file, or it is not yaml; the line says ``what``.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(what, file=file, hint=str(error)) from error
