"""Clients of the service: typed answers, retries that end, and batches. Imports neither torch, Ray nor the server."""

from serving.client.client import AsyncClient, Client
from serving.client.embeddings import Embeddings
from serving.client.errors import ServiceError
from serving.client.images import NamedImage
from serving.client.talk import Answer

__all__ = ["Answer", "AsyncClient", "Client", "Embeddings", "NamedImage", "ServiceError"]
