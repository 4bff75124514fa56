"""LeRobot plugin of the compact vision-language-action policy `razor`.

Importing this package registers the configuration, which is all that LeRobot needs: it finds the
model and the processors by the names of the sibling modules.
"""

from lerobot_policy_razor.configuration_razor import RazorConfig

__all__ = ["RazorConfig"]
