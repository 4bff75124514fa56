"""LeRobot plugin of the compact vision-language-action policy `razor`.

Importing this package registers the configuration and the step that tokenises instructions: LeRobot
looks up the steps of a saved pipeline in a registry. It finds the model by the name of its module.
"""

from lerobot_policy_razor import processor_razor as _processor_razor  # noqa: F401
from lerobot_policy_razor.configuration_razor import RazorConfig

__all__ = ["RazorConfig"]
