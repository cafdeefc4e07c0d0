"""The thinkers of transformers with what training and evaluation need of them: `Family.thinker` names these classes.

Subclasses, because that is the way transformers supports: nothing is replaced on an instance, and each carries the name
of the class that it extends, so that what is saved says the architecture that it always said. Four things are added.

* `base_model`: the hidden states of all inputs without the head. TRL (1.16, `add_fused_lm_head`) calls it and projects
  in tiles; transformers' own falls back to the whole model, as the thinker has no module under its prefix.
* `video_tokens`, `audio_tokens`: what the towers made of the media, in place of the media (`migr.omni.towers`).
* positions row by row, where sound and frames are interleaved.
* `generate(group=…)`: one reading of the prompt for all rows of a clip.

And frozen towers never see a gradient: under gradient checkpointing, transformers makes the outputs of all input
embeddings require one, the towers' too, which would then be recomputed and get a backward pass for nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5OmniThinkerForConditionalGeneration, Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

MEDIA_TOKENS = ("video_tokens", "audio_tokens")
MEDIA_KEYS = (  # all arguments of media
    *("pixel_values_videos", "video_tokens", "video_grid_thw", "video_second_per_grid"),
    *("input_features", "audio_tokens", "feature_attention_mask"),
)

_Thinker: Any = object  # what the mixin calls is that of either class of transformers


class OmniThinker(_Thinker):
    """What both thinkers share; mixed in before transformers' class."""

    @property
    def base_model(self) -> Any:
        """`backbone`, where TRL looks for it."""
        return self.backbone

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """The video tower's tokens of pixels; without a gradient where it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(self.visual)):
            return super().get_video_features(*args, **kwargs)

    def get_audio_features(self, *args: Any, **kwargs: Any) -> Any:
        """The audio tower's tokens of sound; without a gradient where it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(self.audio_tower)):
            return super().get_audio_features(*args, **kwargs)

    def video_tokens_of(self, pixel_values_videos: Tensor, video_grid_thw: Any) -> Tensor:
        """Tokens of pixels (patches, values) and their grids (clips, 3): (levels, T, hidden).

        Qwen2.5-Omni has one level. Qwen3-Omni adds those of inner layers of the tower (DeepStack), which the first
        layers of its language model take.
        """
        output = self.get_video_features(pixel_values_videos, video_grid_thw, return_dict=True)
        deeper = getattr(output, "deepstack_features", None) or ()
        return torch.stack([torch.cat(list(output.pooler_output)), *deeper])

    def audio_tokens_of(self, input_features: Tensor, feature_attention_mask: Any) -> Tensor:
        """Tokens of sound (clips, mel, frames), masked (clips, frames): (T, hidden)."""
        return self.get_audio_features(input_features, feature_attention_mask, return_dict=True).last_hidden_state

    def backbone(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        video_second_per_grid: Tensor | None = None,
        video_tokens: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        audio_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The language model's output for text and media, without the head.

        Args:
            input_ids: (B, L) with a placeholder for each token of the media.
            attention_mask: (B, L), 0 on padding; or (B, 1, L, L), as `migr.training.shared_prefix` makes it.
            position_ids: (3, B, L) or (4, B, L); by default those of the media's grids.
            past_key_values: As in transformers.
            inputs_embeds: (B, L, hidden) in place of the embedded `input_ids`.
            use_cache: As in transformers.
            pixel_values_videos: (patches, values) of all clips with frames, in the rows' order.
            video_grid_thw: (clips, 3).
            video_second_per_grid: (clips,) seconds that a temporal patch spans.
            video_tokens: (levels, T, hidden), in place of pixels: the tower does not run.
            input_features: (clips, mel, frames) of all clips with sound.
            feature_attention_mask: (clips, frames).
            audio_tokens: (T, hidden), in place of sound.
            **kwargs: For the language model.

        Returns:
            Its output, with `last_hidden_state` (B, L, hidden).
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if audio_tokens is None and input_features is not None:
            audio_tokens = self.audio_tokens_of(input_features, feature_attention_mask)
        if audio_tokens is not None:
            _, _, places = self.get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(places, _like(audio_tokens, inputs_embeds))
        if video_tokens is None and pixel_values_videos is not None:
            video_tokens = self.video_tokens_of(pixel_values_videos, video_grid_thw)
        if video_tokens is not None:
            first = _like(video_tokens[0], inputs_embeds)
            _, places, _ = self.get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds, video_features=first)
            inputs_embeds = inputs_embeds.masked_scatter(places, first)
            if len(video_tokens) > 1:
                kwargs |= {"deepstack_visual_embeds": list(video_tokens[1:]), "visual_pos_masks": places[..., 0]}
        if position_ids is None:
            position_ids = self.compute_3d_position_ids(
                input_ids=input_ids,
                image_grid_thw=None,
                video_grid_thw=video_grid_thw,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                audio_feature_lengths=None if feature_attention_mask is None else feature_attention_mask.sum(1),
                video_second_per_grid=video_second_per_grid,
            )
        return self.model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{**kwargs, "return_dict": True},  # `generate` asks for it too
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        video_second_per_grid: Tensor | None = None,
        video_tokens: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        audio_tokens: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits for text and media; the arguments of `backbone`, and two more. Pictures are not taken.

        The arguments are spelled out because `generate` and Trainer read their names.

        Args:
            labels: (B, L) as in transformers; gives `loss`.
            logits_to_keep: Logits of so many last positions alone; 0 for all. `generate` asks for 1.

        Returns:
            `logits` (B, L, vocabulary) or (B, logits_to_keep, vocabulary), `past_key_values`, and `loss` with labels.
        """
        output: Any = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values_videos=pixel_values_videos,
            video_grid_thw=video_grid_thw,
            video_second_per_grid=video_second_per_grid,
            video_tokens=video_tokens,
            input_features=input_features,
            feature_attention_mask=feature_attention_mask,
            audio_tokens=audio_tokens,
            **kwargs,
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.get_text_config().vocab_size, **kwargs)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            router_logits=getattr(output, "router_logits", None),
        )

    def get_rope_index(
        self,
        input_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_audio_in_video: bool = False,
        audio_seqlens: Tensor | None = None,
        second_per_grids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Positions (3, B, L), and what generation adds to those of text (B, 1).

        `use_audio_in_video` of transformers' is one value for the whole batch: with True, a row that has video but no
        sound gets no positions in time and space, and the rows after it get its media's. Here the marks tell, and the
        argument does not count: a vision mark directly before an audio mark opens interleaved media. So the prompt
        alone decides, in training and in generation.
        """
        config: Any = self.config
        opens = input_ids == config.vision_start_token_id
        sounds = input_ids == config.audio_start_token_id
        nested = (opens[:, :-1] & sounds[:, 1:]).any(1).tolist()
        if not any(nested):
            grids = (image_grid_thw, video_grid_thw, attention_mask)
            return super().get_rope_index(input_ids, *grids, False, audio_seqlens, second_per_grids)
        pictures = (opens[:, :-1] & (input_ids[:, 1:] == config.image_token_id)).sum(1).tolist()
        counts = zip(pictures, opens.sum(1).tolist(), sounds.sum(1).tolist(), strict=True)
        done, rows = [0, 0, 0], []
        for row, (images, marks, audios) in enumerate(counts):
            ends = [start + n for start, n in zip(done, (images, marks - images, audios), strict=True)]
            picture, video, sound = (slice(*bounds) for bounds in zip(done, ends, strict=True))
            rows.append(
                super().get_rope_index(
                    input_ids[row : row + 1],
                    _part(image_grid_thw, picture),
                    _part(video_grid_thw, video),
                    _part(attention_mask, slice(row, row + 1)),
                    nested[row],
                    _part(audio_seqlens, sound),
                    _part(second_per_grids, video),
                )
            )
            done = ends
        kind = rows[nested.index(True)][0].dtype
        return torch.cat([positions.to(kind) for positions, _ in rows], 1), torch.cat([delta for _, delta in rows])

    def positions(self, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Tensor]) -> Tensor:
        """Positions (3, B, L) of prompts (B, L) with these media arguments."""
        sound = media.get("feature_attention_mask")
        position_ids, _ = self.get_rope_index(
            input_ids,
            video_grid_thw=media.get("video_grid_thw"),
            attention_mask=attention_mask,
            audio_seqlens=None if sound is None else sound.sum(1),
            second_per_grids=media.get("video_second_per_grid"),
        )
        return position_ids

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any) -> Any:
        """As in transformers; the media's tokens are read once, like the media."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in MEDIA_TOKENS:
                inputs.pop(name, None)
        return inputs

    @torch.no_grad()
    def generate(self, *args: Any, group: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers; with `group`, one prefill for all rows of a prompt.

        Args:
            args: As in transformers.
            group: (B,) the number of each row's prompt, counted from 0 in the order in which they first come. Media
                are then those of the G prompts.
            kwargs: As in transformers; with `group`, `input_ids` and `attention_mask` (B, P) by name.
        """
        if group is None:
            return super().generate(*args, **kwargs)
        media = {name: kwargs.pop(name) for name in list(kwargs) if name in MEDIA_KEYS}
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        numbers = group.tolist()
        first = [numbers.index(number) for number in range(max(numbers) + 1)]
        at = self.positions(ids[first], mask[first], media)
        # all but the last token, which generate reads itself: the first new one follows it
        read = self.backbone(ids[first, :-1], mask[first, :-1], at[..., :-1], use_cache=True, **media)
        read.past_key_values.batch_select_indices(group)
        place = (mask.long().cumsum(-1) - 1).clamp(min=0)
        four = torch.cat([place[None], at[:, group]])  # as transformers lays them out: text, then time, height, width
        return super().generate(*args, past_key_values=read.past_key_values, position_ids=four, **kwargs)


def _extended(base: Any) -> Any:
    """`base` with `OmniThinker`, under its own name and module.

    transformers writes the name into saved configurations, and reads in the module's source what the class can do.
    """
    return type(base.__name__, (OmniThinker, base), {"__module__": base.__module__, "__doc__": base.__doc__})


Qwen2_5OmniThinker = _extended(Qwen2_5OmniThinkerForConditionalGeneration)
Qwen3OmniMoeThinker = _extended(Qwen3OmniMoeThinkerForConditionalGeneration)


def thinker_of(model: Any) -> Any:
    """The thinker inside a PEFT model, or the thinker itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _learns(tower: nn.Module) -> bool:
    return any(weight.requires_grad for weight in tower.parameters())


def _like(tokens: Tensor, embeddings: Tensor) -> Tensor:
    return tokens.to(embeddings.device, embeddings.dtype)


def _part(values: Tensor | None, rows: slice) -> Tensor | None:
    """These rows, or None where there are none."""
    return None if values is None or rows.start == rows.stop else values[rows]
