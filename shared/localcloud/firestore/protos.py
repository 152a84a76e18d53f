"""The raw protobuf classes under the client library's wrappers, which are several times slower.

Descriptors carry no type annotations, so a message is `Any` here; names tell which message is meant.
"""

from typing import Any, TypeAlias

from google.cloud.firestore_v1.types import aggregation_result, common, document, firestore, query, write
from google.rpc import status_pb2  # type: ignore[import-untyped]

Pb: TypeAlias = Any
"""A protobuf message."""

Status: Pb = status_pb2.Status

Value: Pb = document.Value.pb()
Document: Pb = document.Document.pb()
ArrayValue: Pb = document.ArrayValue.pb()
MapValue: Pb = document.MapValue.pb()

Write: Pb = write.Write.pb()
WriteResult: Pb = write.WriteResult.pb()
FieldTransform: Pb = write.DocumentTransform.FieldTransform.pb()

StructuredQuery: Pb = query.StructuredQuery.pb()
Cursor: Pb = query.Cursor.pb()
FieldFilter: Pb = query.StructuredQuery.FieldFilter.pb()
UnaryFilter: Pb = query.StructuredQuery.UnaryFilter.pb()
CompositeFilter: Pb = query.StructuredQuery.CompositeFilter.pb()
StructuredAggregationQuery: Pb = query.StructuredAggregationQuery.pb()

AggregationResult: Pb = aggregation_result.AggregationResult.pb()

TransactionOptions: Pb = common.TransactionOptions.pb()

BatchGetDocumentsRequest: Pb = firestore.BatchGetDocumentsRequest.pb()
BatchGetDocumentsResponse: Pb = firestore.BatchGetDocumentsResponse.pb()
BatchWriteRequest: Pb = firestore.BatchWriteRequest.pb()
BatchWriteResponse: Pb = firestore.BatchWriteResponse.pb()
BeginTransactionRequest: Pb = firestore.BeginTransactionRequest.pb()
BeginTransactionResponse: Pb = firestore.BeginTransactionResponse.pb()
CommitRequest: Pb = firestore.CommitRequest.pb()
CommitResponse: Pb = firestore.CommitResponse.pb()
CreateDocumentRequest: Pb = firestore.CreateDocumentRequest.pb()
DeleteDocumentRequest: Pb = firestore.DeleteDocumentRequest.pb()
GetDocumentRequest: Pb = firestore.GetDocumentRequest.pb()
ListCollectionIdsRequest: Pb = firestore.ListCollectionIdsRequest.pb()
ListCollectionIdsResponse: Pb = firestore.ListCollectionIdsResponse.pb()
ListDocumentsRequest: Pb = firestore.ListDocumentsRequest.pb()
ListDocumentsResponse: Pb = firestore.ListDocumentsResponse.pb()
ListenRequest: Pb = firestore.ListenRequest.pb()
ListenResponse: Pb = firestore.ListenResponse.pb()
PartitionQueryRequest: Pb = firestore.PartitionQueryRequest.pb()
PartitionQueryResponse: Pb = firestore.PartitionQueryResponse.pb()
RollbackRequest: Pb = firestore.RollbackRequest.pb()
RunAggregationQueryRequest: Pb = firestore.RunAggregationQueryRequest.pb()
RunAggregationQueryResponse: Pb = firestore.RunAggregationQueryResponse.pb()
RunQueryRequest: Pb = firestore.RunQueryRequest.pb()
RunQueryResponse: Pb = firestore.RunQueryResponse.pb()
TargetChange: Pb = firestore.TargetChange.pb()
UpdateDocumentRequest: Pb = firestore.UpdateDocumentRequest.pb()
