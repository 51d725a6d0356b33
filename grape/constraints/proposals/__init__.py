"""Stage constraints proposed by a vision-language model: the scene it is shown, the prompts, the client, the cache."""

from grape.constraints.proposals.cache import AnswerCache, StoredAnswer, pixels_digest
from grape.constraints.proposals.client import Endpoint, ModelSettings
from grape.constraints.proposals.messages import PROMPT_VERSION, first_messages, readable
from grape.constraints.proposals.propose import (
    Asking,
    MissingAnswerError,
    Proposal,
    Turn,
    UnusableAnswersError,
    count_tokens,
    propose,
)
from grape.constraints.proposals.scene import (
    Scene,
    SceneKeypoint,
    read_keypoints,
    scene_of_picture,
    scene_of_view,
)

__all__ = [
    "PROMPT_VERSION",
    "AnswerCache",
    "Asking",
    "Endpoint",
    "MissingAnswerError",
    "ModelSettings",
    "Proposal",
    "Scene",
    "SceneKeypoint",
    "StoredAnswer",
    "Turn",
    "UnusableAnswersError",
    "count_tokens",
    "first_messages",
    "pixels_digest",
    "propose",
    "read_keypoints",
    "readable",
    "scene_of_picture",
    "scene_of_view",
]
