"""Attention blocks for images, volumes and sequences. Pure torch: install nothing else to use them. README.md says how to choose one."""

from shared.attention.agent import AgentAttention
from shared.attention.attend import attend, explain_backend
from shared.attention.bags import BagPooling, GatedBagPooling, MultiBranchPooling
from shared.attention.box_bias import BoxCrossAttention
from shared.attention.chunked import ChunkedAttention, chunked_attend
from shared.attention.contmix import ContMix
from shared.attention.cost import Cost
from shared.attention.davit import ChannelBlock, ChannelGroupAttention, SpatialBlock
from shared.attention.decoder import DetrDecoderLayer, ObjectPointer, RoutingCrossAttention
from shared.attention.discriminator import DiscriminatorAttention
from shared.attention.dropin import InsertedAttention, dropin
from shared.attention.dual import ChannelAttention, PositionAttention
from shared.attention.dual_cross import GlobalLocalAttention, PairwiseAttention
from shared.attention.dual_layer import DualLayer
from shared.attention.ela import EfficientLocalAttention
from shared.attention.feature_maps import HedgehogAttention, LogNormalAttention, LogNormalDiagonalAttention
from shared.attention.flatten import FocusedLinearAttention, WindowFocusedLinearAttention
from shared.attention.flow import CausalFlowAttention, FlowAttention, causal_flow_attend, flow_attend
from shared.attention.focal import FocalModulation
from shared.attention.galerkin import FourierAttention, GalerkinAttention
from shared.attention.gate import AdditiveGate, AttentionGate, ConcatenationGate, SoftmaxAttentionGate
from shared.attention.grouped_query import GroupedQueryAttention
from shared.attention.guided import GuidedAttention, SemanticModule
from shared.attention.halo import HaloAttention
from shared.attention.high_order import HighOrderAttention
from shared.attention.hilo import HiLoAttention
from shared.attention.in_attention import AttentionInAttention
from shared.attention.inline import InLineAttention
from shared.attention.kronecker import KroneckerAttention, KroneckerKeyAttention
from shared.attention.large_kernel import LargeKernelAttention, ProjectedLargeKernelAttention, VisualAttentionBlock
from shared.attention.latents import LatentCrossAttention
from shared.attention.linear import linear_attend
from shared.attention.maps import AttentionMap, GivenMap, LinearMap, SoftmaxMap
from shared.attention.maxvit import PartitionAttention
from shared.attention.mbconv import ReversibleMBConv
from shared.attention.moh import MixtureOfHeads
from shared.attention.multihead import MultiHeadAttention
from shared.attention.neighborhood import CircularAttention, NeighborhoodAttention, circular_attend, neighborhood_attend
from shared.attention.pooling import TokenAveragePooling, diversification_loss
from shared.attention.positions import FourierPositions
from shared.attention.recording import Recording, record
from shared.attention.registry import cost_of, create, find, list_blocks, load_published, register, settings_of
from shared.attention.relation import GlobalContext, RelationAttention
from shared.attention.relu_attention import ReluAttention
from shared.attention.residual_module import ResidualAttention
from shared.attention.reverse import ReverseAttention
from shared.attention.routing import RoutingAttention
from shared.attention.separable import SeparableAttention
from shared.attention.shift import Shift, ShiftBlock
from shared.attention.signed import SignedAttention
from shared.attention.sparsifiner import Sparsifiner
from shared.attention.squeeze import ChannelSqueeze, ProjectExcite, SpatialChannelSqueeze, SpatialSqueeze
from shared.attention.triplet import TripletAttention
from shared.attention.twins import GlobalSubsampledAttention, LocallyGroupedAttention
from shared.attention.ulsam import SubspaceAttention
from shared.attention.uniform import UniformAttention
from shared.attention.windows import window_attend

__all__ = [
    "AdditiveGate",
    "AgentAttention",
    "AttentionGate",
    "AttentionInAttention",
    "AttentionMap",
    "BagPooling",
    "BoxCrossAttention",
    "CausalFlowAttention",
    "ChannelAttention",
    "ChannelBlock",
    "ChannelGroupAttention",
    "ChannelSqueeze",
    "ChunkedAttention",
    "CircularAttention",
    "ConcatenationGate",
    "ContMix",
    "Cost",
    "DetrDecoderLayer",
    "DiscriminatorAttention",
    "DualLayer",
    "EfficientLocalAttention",
    "FlowAttention",
    "FocalModulation",
    "FocusedLinearAttention",
    "FourierAttention",
    "FourierPositions",
    "GalerkinAttention",
    "GatedBagPooling",
    "GivenMap",
    "GlobalContext",
    "GlobalLocalAttention",
    "GlobalSubsampledAttention",
    "GroupedQueryAttention",
    "GuidedAttention",
    "HaloAttention",
    "HedgehogAttention",
    "HiLoAttention",
    "HighOrderAttention",
    "InLineAttention",
    "InsertedAttention",
    "KroneckerAttention",
    "KroneckerKeyAttention",
    "LargeKernelAttention",
    "LatentCrossAttention",
    "LinearMap",
    "LocallyGroupedAttention",
    "LogNormalAttention",
    "LogNormalDiagonalAttention",
    "MixtureOfHeads",
    "MultiBranchPooling",
    "MultiHeadAttention",
    "NeighborhoodAttention",
    "ObjectPointer",
    "PairwiseAttention",
    "PartitionAttention",
    "PositionAttention",
    "ProjectExcite",
    "ProjectedLargeKernelAttention",
    "Recording",
    "RelationAttention",
    "ReluAttention",
    "ResidualAttention",
    "ReverseAttention",
    "ReversibleMBConv",
    "RoutingAttention",
    "RoutingCrossAttention",
    "SemanticModule",
    "SeparableAttention",
    "Shift",
    "ShiftBlock",
    "SignedAttention",
    "SoftmaxAttentionGate",
    "SoftmaxMap",
    "Sparsifiner",
    "SpatialBlock",
    "SpatialChannelSqueeze",
    "SpatialSqueeze",
    "SubspaceAttention",
    "TokenAveragePooling",
    "TripletAttention",
    "UniformAttention",
    "VisualAttentionBlock",
    "WindowFocusedLinearAttention",
    "attend",
    "causal_flow_attend",
    "chunked_attend",
    "circular_attend",
    "cost_of",
    "create",
    "diversification_loss",
    "dropin",
    "explain_backend",
    "find",
    "flow_attend",
    "linear_attend",
    "list_blocks",
    "load_published",
    "neighborhood_attend",
    "record",
    "register",
    "settings_of",
    "window_attend",
]
