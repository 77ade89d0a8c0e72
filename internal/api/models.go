package api

import (
	"context"
	"fmt"
	"slices"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

type noModels struct{}

func (noModels) Models(context.Context) []batch.ModelInfo { return nil }

func (s *server) listModels(ctx context.Context, _ batch.Project, _ struct{}) (openai.ModelList, error) {
	return openai.ModelList{Object: "list", Data: wireAll(s.Models.Models(ctx), wireModel)}, nil
}

func (s *server) model(ctx context.Context, _ batch.Project, id string) (openai.Model, error) {
	models := s.Models.Models(ctx)
	i := slices.IndexFunc(models, func(m batch.ModelInfo) bool { return m.ID == id })
	if i < 0 {
		return openai.Model{}, &batch.Error{
			Kind: batch.NotFound, Code: "model_not_found", Param: "model",
			Msg: fmt.Sprintf("The model '%s' does not exist", id),
		}
	}
	return wireModel(models[i]), nil
}
