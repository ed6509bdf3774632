"""Sharing features: through the Hugging Face hub, with a card that says how far to trust them."""

from os import PathLike
from pathlib import Path

from param_features.features.measuring import MeasuredFeatures
from param_features.files import new_folder
from param_features.machine import methods_in_own_modes, public
from param_features.sharing import MESSAGE, USUAL, CardSettings, PushTarget, push, write_card


@methods_in_own_modes
class SharedFeatures(MeasuredFeatures):
    """Features that can be given to others."""

    @public
    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        commit_message: str = MESSAGE,
        card: CardSettings | None = USUAL,
    ) -> str:
        """Push to the Hugging Face hub what `save_pretrained` writes, with a card; `pf.load(repo)` reads it.

        The held-out examples go with the features, as texts in the card and as tokens in the file: push no data that is not
        yours to publish. Cost: the card's; see `save_card`.

        Args:
            repo: `owner/name`; made where there is none.
            private: Whether a new repository is private; by default it is public, or as the organization has it.
            token: Of the hub; by default the one that `hf auth login` left.
            branch: Where to, made where there is none; the main branch by default.
            create_pr: Open a pull request instead.
            commit_message: Of the one commit.
            card: What the card says; None leaves the card as it is on the hub.

        Returns:
            The commit's address, or the pull request's. Of several processes that accelerate launched the main one pushes,
            and the others return "".

        Raises:
            SettingError: `repo` is not `owner/name`; or it is to be private, and there is a public one; or the hub does not
                understand the card's first lines.
            HubAccessError: The hub does not let the caller write there.
            HubOfflineError: It was not reached.
            HubError: It refuses otherwise.
            MissingExtraError: huggingface-hub is not installed.
        """
        target = PushTarget(repo, private, token, branch, create_pr, commit_message)
        return push(self, target, card)

    @public
    def save_card(self, directory: str | PathLike, card: CardSettings = USUAL, *, repo: str | None = None) -> Path:
        """Write the card, `README.md`, and its picture, `features.png`, into a directory: to read it before a push.

        The card has the metrics beside the controls, and with a model the top examples. Without matplotlib it has no
        picture, and a `pf.errors.Notice` says so. Cost: a pass of activations over the saved examples, once.

        Args:
            directory: Where to; what `save_pretrained` wrote may lie there. An earlier card is replaced.
            card: What it says.
            repo: The name under which the features will be on the hub, for the card's example.

        Returns:
            The card's path.
        """
        folder = new_folder(directory)
        folder.mkdir(parents=True, exist_ok=True)
        return write_card(self, folder, card, repo=repo)
